"""Serial consoles of machines: one session with each BMC, any number of readers, one writer.

What passes through may hold secrets: it goes to those who are attached and, where that is switched on, to the
recording, and never to a log, an event or the database.
"""
