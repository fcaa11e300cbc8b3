"""provisioner: from Linux machines that answer SSH to a verified, highly available Kubernetes cluster."""

__version__ = "0.1.0"
