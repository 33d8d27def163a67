"""The engines' configurations, and how each names the environment variables that it reads."""

from __future__ import annotations

from lab.paths import ALLOY, COLLECTOR, COMPOSE, GRAFANA

# Configuration that reads the environment, and how it names variables.
CONFIGURATIONS = [
    *((COMPOSE / engine / f"{engine}.yaml", r"\$\{([A-Z_]+)\}") for engine in ("tempo", "loki")),
    (COLLECTOR / "collector.yaml", r"\$\{env:([A-Z_]+)\}"),
    *((path, r"\$\{env:([A-Z_]+)\}") for path in sorted((COLLECTOR / "sampling").glob("*.yaml"))),
    (GRAFANA / "grafana.ini", r"\$__env\{([A-Z_]+)\}"),
    *((path, r"(?<!\$)\$([A-Z_]+)") for path in sorted(GRAFANA.glob("provisioning/*/*.yml"))),
    *((path, r"sys\.env\(\"([A-Z_]+)\"\)") for path in sorted(ALLOY.glob("*.alloy"))),
]
# In containers only.
ELSEWHERE = {"DOCKER_HOST"}
