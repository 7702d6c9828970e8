"""The audit log: for each call that changes something or tells a secret, who, what, when, from where, and the outcome.

One log a service, in its own schema, shared by its replicas. The entry that a call begins is durable before the handler
runs, so there is no effect without a trace; the entry that it ended follows within milliseconds. Entries form a chain
of hashes (`chain`), which anyone may recompute from outside.

`entry`, `subject` and `chain` are plain rules; `trace` is what the interceptor does for one call; `writer` collects
what the calls of one process have to say and appends it in batches, through `store` (a database) or `remote` (another
service); `api` serves the log, `upkeep` removes what is old. Values of requests are never recorded: they may be
secrets.
"""
