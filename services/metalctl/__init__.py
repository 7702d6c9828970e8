"""metalctl: the plane on the command line. A client like any other: it holds no rules and knows no database."""
