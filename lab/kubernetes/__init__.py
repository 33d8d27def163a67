"""The lab in a Kubernetes cluster: its kustomizations, its pods, its ports, and what many users need."""
