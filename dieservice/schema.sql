CREATE TABLE IF NOT EXISTS dice (
    identifier text PRIMARY KEY CHECK (char_length(identifier) BETWEEN 1 AND 64),
    faces      integer[] NOT NULL CHECK (cardinality(faces) > 0),
    error_rate double precision NOT NULL CHECK (error_rate BETWEEN 0 AND 1)
);
