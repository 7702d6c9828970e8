"""gRPC servicers: messages to domain and back, masks, paging. No SQL, no rules."""
