"""RMCP+ (IPMI 2.0 over UDP) as a client: packets, cipher suites, handshake and sessions are pure; `udp`, `link` and
`client` do the I/O. Knows nothing of machines, databases or drivers."""
