"""Simulated racks: BMCs, machines and leaves that speak the real protocols, and the faults they can have.

Nothing here is imported by a service; the lab and the tests wire it to them over the network.
"""
