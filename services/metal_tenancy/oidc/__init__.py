"""People who log in at an OpenID provider: whom its ID tokens speak for. What they get for it, `login` decides."""
