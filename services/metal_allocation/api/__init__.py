"""gRPC servicers of allocation."""
