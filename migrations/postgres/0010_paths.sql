-- What a function of ours names is what was meant, whoever calls it and whatever they have made: pg_catalog comes first, nobody's
-- temporary tables come before ours, and a call into the catalogue says so and has the types of its parameters. A literal of another type
-- would be taken by a function of the same name that fits it better, wherever it is.

DO $types$
DECLARE
    change record;
    was text;
BEGIN
    -- Their texts stay as the migrations before have them, but for this.
    FOR change IN SELECT * FROM (VALUES
        ('remit_retain(text, bigint, text, bigint, bigint[], bytea[], text)',
            'pg_advisory_xact_lock(hashtextextended(''remit retain '' || of_writer, 0))',
            'pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(''remit retain ''::text || of_writer, 0::bigint))'),
        ('remit_retain(text, bigint, text, bigint, bigint[], bytea[], text)',
            '(extract(epoch FROM now()) - floor_seconds) * 1000000',
            '(pg_catalog.floor(extract(epoch FROM pg_catalog.now()))::bigint - floor_seconds) * 1000000::bigint'),
        ('remit_retain(text, bigint, text, bigint, bigint[], bytea[], text)', 'cardinality(', 'pg_catalog.cardinality('),
        ('remit_retain(text, bigint, text, bigint, bigint[], bytea[], text)',
            'sha256(convert_to(r.body, ''UTF8''))',
            'pg_catalog.sha256(pg_catalog.convert_to(r.body, ''UTF8''::name))'),
        ('remit_retain(text, bigint, text, bigint, bigint[], bytea[], text)', 'max(number), 0) + 1', 'pg_catalog.max(number), 0::bigint) + 1::bigint'),
        ('remit_history()',
            'pg_advisory_xact_lock(hashtextextended(''remit in force '' || NEW.tenant_uid, 0))',
            'pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(''remit in force ''::text || NEW.tenant_uid, 0::bigint))'),
        ('remit_history()', 'coalesce(c.last, 0) + 1', 'coalesce(c.last, 0::bigint) + 1::bigint'),
        ('remit_thin_anchors(text)', 'max(number) FROM anchors WHERE writer = of_writer) - 10000',
            'pg_catalog.max(number) FROM anchors WHERE writer = of_writer) - 10000::bigint'),
        ('remit_forget_shadows(text, bigint)',
            '(extract(epoch FROM now()) - floor_seconds) * 1000000',
            '(pg_catalog.floor(extract(epoch FROM pg_catalog.now()))::bigint - floor_seconds) * 1000000::bigint')
    ) AS changes (of_function, before, after) LOOP
        was := pg_catalog.pg_get_functiondef(change.of_function::regprocedure);
        IF pg_catalog.strpos(was, change.before) = 0 THEN
            RAISE EXCEPTION '% is not as Remit made it', change.of_function;
        END IF;
        EXECUTE pg_catalog.replace(was, change.before, change.after);
    END LOOP;
END $types$;

DO $paths$
DECLARE
    ours regprocedure;
BEGIN
    FOR ours IN SELECT p.oid FROM pg_catalog.pg_proc p
        WHERE p.pronamespace = pg_catalog.current_schema()::regnamespace AND p.proname LIKE 'remit\_%'
    LOOP
        EXECUTE pg_catalog.format('ALTER FUNCTION %s SET search_path = pg_catalog, %I, pg_temp', ours, pg_catalog.current_schema());
    END LOOP;
END $paths$;
