"""The agent on a SONiC leaf: turns one desired state into CONFIG_DB rows and an FRR configuration, and proves it.

It keeps nothing but the last state that was proven to work, on the leaf's own disk. It does not decide who belongs to
which VRF (that is fabric's), it never talks to another service than fabric, and it needs no control plane to keep
forwarding: when it is cut off it leaves everything as it is.
"""
