"""The lab: the whole control plane and a simulated rack on one machine."""
