"""Write the dashboards' JSON: ``make dashboards``."""

from grafana.dashboards import DIRECTORY, files

DIRECTORY.mkdir(exist_ok=True)
for path, content in files():
    path.write_text(content)
