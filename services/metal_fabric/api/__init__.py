"""gRPC servicers of fabric: messages in, messages out; no SQL and no rules."""
