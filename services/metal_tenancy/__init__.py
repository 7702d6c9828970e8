"""Tenancy: tenants, projects, their members, and the bearer tokens of people and scripts.

Every other service asks here whom a token speaks for; tenancy asks nobody. It knows nothing of machines.
"""
