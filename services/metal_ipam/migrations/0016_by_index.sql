-- Functions keep the plans of their statements for as long as a connection lives. One that was planned while a table was
-- nearly empty reads all of it, and goes on doing so when there are a hundred thousand rows, until statistics are
-- gathered anew: an acquire took milliseconds then. Everything that these functions look for has its index; with this
-- they use it from the first row on.
ALTER FUNCTION acquire_n(bigint, text[], jsonb, text) SET enable_seqscan = off;
ALTER FUNCTION acquire_specific(bigint, inet, text, jsonb, text[], text) SET enable_seqscan = off;
ALTER FUNCTION acquire_many(bigint, integer, jsonb, text) SET enable_seqscan = off;
ALTER FUNCTION release_n(integer[], inet[], text[], text[], text) SET enable_seqscan = off;
ALTER FUNCTION release_entries(bigint, jsonb) SET enable_seqscan = off;
ALTER FUNCTION serve_prefixes(bigint[], jsonb, jsonb) SET enable_seqscan = off;
ALTER FUNCTION end_quarantine(integer) SET enable_seqscan = off;
