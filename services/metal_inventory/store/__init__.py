"""SQL of inventory, one class an aggregate. Every method takes the caller's connection, so the caller decides what is
one transaction. Whoever changes anything of a machine locks its row in `machine` first.
"""
