"""A fabric in network namespaces: Linux kernels that forward and real FRR daemons, on one machine, without a trace.

Leaves, an exit, machines and firewalls are boxes (`namespace`) joined by veth pairs. Everything needs root.
"""
