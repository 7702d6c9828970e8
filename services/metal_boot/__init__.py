"""metal-boot: decides what a machine boots, and speaks for the control plane to its installer.

Stateless: any number of replicas serve a partition. What it remembers (the last decision for a machine, used tokens)
only bridges an outage; losing it harms nothing.
"""
