"""gRPC servicers of tenancy."""
