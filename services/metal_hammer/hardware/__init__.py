"""What the installer needs from the machine it runs on, and the backend for real Linux machines."""
