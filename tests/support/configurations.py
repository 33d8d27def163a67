"""The engines' configurations, and how each names the environment variables that it reads."""

from __future__ import annotations

from lab.supervise import engines

# Configuration that reads the environment, and how it names variables.
CONFIGURATIONS = [
    *((engines.COMPOSE / engine / f"{engine}.yaml", r"\$\{([A-Z_]+)\}") for engine in ("tempo", "loki")),
    (engines.OTEL / "collector.yaml", r"\$\{env:([A-Z_]+)\}"),
    *((path, r"\$\{env:([A-Z_]+)\}") for path in sorted((engines.OTEL / "sampling").glob("*.yaml"))),
    (engines.GRAFANA / "grafana.ini", r"\$__env\{([A-Z_]+)\}"),
    *((path, r"(?<!\$)\$([A-Z_]+)") for path in sorted(engines.GRAFANA.glob("provisioning/*/*.yml"))),
    *((path, r"sys\.env\(\"([A-Z_]+)\"\)") for path in sorted(engines.ALLOY.glob("*.alloy"))),
]
# In containers only.
ELSEWHERE = {"DOCKER_HOST"}
