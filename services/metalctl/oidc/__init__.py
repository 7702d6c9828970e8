"""Logging in at an OpenID provider as a program that people run (RFC 8252).

With Python's own library: this is for one command, and the command line is installed where little else is.
"""
