-- Id of the event that told inventory of the present attempt to enforce "off": kept for as long as the machine is not
-- seen off, so that inventory takes in one event however often the order is repeated.
ALTER TABLE endpoint ADD COLUMN off_event uuid;
