"""The simulated rack: what a rack file says, and the machines and leaves that are made of it."""
