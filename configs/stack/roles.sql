-- The local stack's roles, made when its database is: syncrelay migrate gives
-- them their rights, and finds the names taken. Their passwords are no secret,
-- because nobody but this machine reaches the server.
CREATE ROLE syncrelay_relay LOGIN REPLICATION PASSWORD 'local';
CREATE ROLE syncrelay_demo LOGIN PASSWORD 'local';
