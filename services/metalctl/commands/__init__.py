"""Commands that do more than list and get: one module a resource."""
