"""The service runtime that every metalplane service stands on.

It knows gRPC, Postgres, NATS, certificates and tokens. It does not know what a machine, a network or a switch is, and
imports no service. Modules that need server-only packages (asyncpg, nats, prometheus, uvloop) are imported by servers
alone, so that the agents on leaves and in the ramdisk live on the base dependencies.
"""
