"""metal-hammer: the installer that runs in a machine's ramdisk.

It inspects the machine, registers it, wipes its disks, installs an operating system and starts it. It owns nothing and
decides nothing: every destructive step needs a fresh grant from the control plane (`grant.py`).
"""
