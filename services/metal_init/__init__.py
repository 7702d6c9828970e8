"""What a plane in containers needs before its first service starts: certificates, keys, passwords, database roles."""
