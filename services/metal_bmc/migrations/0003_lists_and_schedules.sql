-- Lists and schedules of one partition, each in its order: a partition's BMC service asks for its own only, and what is
-- not due there must not be looked through for that.
CREATE INDEX endpoint_partition ON endpoint (partition, machine);
DROP INDEX endpoint_poll;
CREATE INDEX endpoint_poll ON endpoint (partition, poll_at)
    WHERE refused_logins < 2 AND sealed IS NOT NULL AND host <> '';
-- Whole: that what is due lies before 'infinity' is nothing that Postgres concludes.
DROP INDEX endpoint_report;
CREATE INDEX endpoint_report ON endpoint (partition, report_at);
-- Machines whose power is not the one that is wanted: few, and looked for again and again.
CREATE INDEX endpoint_unsettled ON endpoint (partition)
    WHERE desired_on IS NOT NULL AND reported_on IS DISTINCT FROM desired_on AND sealed IS NOT NULL AND host <> '';

CREATE INDEX command_open_by_partition ON command (partition, deadline) WHERE state IN ('pending', 'running');
CREATE INDEX command_ended ON command (ended_at) WHERE NOT (state IN ('pending', 'running'));
