"""The SSH transport and preflight, against real OpenSSH servers on loopback."""
