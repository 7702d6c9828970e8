"""SQL of ipam, one module an aggregate. Every function joins the caller's connection and transaction.

Locks are taken in one order everywhere, so that no two operations can wait for each other: owner, network row, pool
row, namespace row, prefix rows by id (parents before children, whose ids are larger).
"""
