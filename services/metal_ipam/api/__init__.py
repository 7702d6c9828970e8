"""gRPC servicers of ipam: messages to domain and back, field masks, paging, and who may see what. No SQL, no rules."""
