-- Watches of addresses read the history: in the order of transactions, and only what is older than the oldest one that
-- still runs, so that nothing can appear behind them. Lines from before this migration have no transaction, and come
-- before every position.
ALTER TABLE history ADD COLUMN xid xid8;
ALTER TABLE history ALTER COLUMN xid SET DEFAULT pg_current_xact_id();
CREATE INDEX history_watch ON history (xid, seq) WHERE object IS NOT NULL;
