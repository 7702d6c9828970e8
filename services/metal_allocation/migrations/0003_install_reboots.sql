-- How often the machine was rebooted to install again. Attempts at BMC commands count what failed as well: an allocation
-- must not give up because its BMC was away for a few seconds.
ALTER TABLE allocation ADD COLUMN install_reboots int NOT NULL DEFAULT 0;
UPDATE allocation SET install_reboots = command_attempts WHERE phase = 'installing' AND command_attempts > 0;
