"""A stand-in for a Koji hub: the same order of callbacks, savepoints and commits, and nothing else.

The order is that of kojihub.kojixmlrpc (Koji 1.35) for one request:

    clear the thread's context; context.commit_pending = False; context.environ = that of WSGI;
    context.cnx = wrapper(connection)
      (the connection is kept by the worker; before use BEGIN is sent and psycopg2 rolls back)
    run the method; each statement of it that writes sets commit_pending
      in a multicall, for each call: SAVEPOINT multiCall_loop (which also sets commit_pending), run it,
      when it raises ROLLBACK TO SAVEPOINT multiCall_loop and go on; the savepoint is never released
    the method raised:     cnx.rollback()
    else if commit_pending: preCommit callbacks, cnx.commit(), postCommit callbacks
    always: cnx.close(), which sends a bare ROLLBACK; clear the context

Callbacks of events run inside of the method. An exception of a preCommit callback that is not marked
with ignore_error ends the request without a commit.
"""
import koji.plugin
from koji.context import context


class Wrapper:
    """What Koji puts around psycopg2's connection: `cnx` is the raw one."""

    def __init__(self, cnx):
        self.cnx = cnx

    def __getattr__(self, name):
        if not self.cnx:
            raise RuntimeError('connection is closed')
        return getattr(self.cnx, name)

    def cursor(self):
        raise AssertionError('the plugin shall not use the wrapped cursor, which logs bodies')

    def close(self):
        self.cnx.cursor().execute('ROLLBACK')
        self.cnx = None


class Hub:
    """One hub worker. With dsn None it has no database and commits in name only."""

    clear = staticmethod(context._threadclear)
    environ = {'REQUEST_METHOD': 'POST'}

    def __init__(self, dsn):
        self.dsn = dsn
        self.raw = None
        self.committed = False      # whether the last request was
        self.between = None         # a function to call between COMMIT and postCommit

    def connect(self):
        if self.raw is None:
            import psycopg2
            self.raw = psycopg2.connect(self.dsn)
            self.raw.set_client_encoding('UTF8')
        else:
            self.raw.cursor().execute('BEGIN')
            self.raw.rollback()
        return Wrapper(self.raw)

    def disconnect(self):
        if self.raw is not None:
            self.raw.close()

    def request(self, method):
        """Run one request. Returns what the method returned or the exception that it raised."""
        self.clear()
        context.commit_pending = False
        if self.environ:
            context.environ = dict(self.environ)
        self.committed = False
        if self.dsn is not None:
            context.cnx = self.connect()
        try:
            try:
                result = method()
            except Exception as error:
                if self.dsn is not None:
                    context.cnx.rollback()
                return error
            if context.commit_pending:
                koji.plugin.run_callbacks('preCommit')
                if self.dsn is not None:
                    context.cnx.commit()
                self.committed = True
                if self.between:
                    self.between()
                koji.plugin.run_callbacks('postCommit')
            return result
        finally:
            if self.dsn is not None and context.cnx.cnx and not context.cnx.closed:
                context.cnx.close()
            self.clear()

    def multicall(self, *methods):
        """Run a multicall. Returns one result or exception for each method."""
        def run():
            results = []
            for method in methods:
                dml('SAVEPOINT multiCall_loop')
                try:
                    results.append(method())
                except Exception as error:
                    dml('ROLLBACK TO SAVEPOINT multiCall_loop')
                    results.append(error)
            return results
        return self.request(run)


def dml(statement, *args):
    """One statement of the hub's own that writes."""
    if hasattr(context, 'cnx'):
        context.cnx.cnx.cursor().execute(statement, args)
    context.commit_pending = True


def change(what='x', event='Tag', fail=False, **kwargs):
    """A method that announces itself, writes a row, announces that, and perhaps fails then."""
    def method():
        koji.plugin.run_callbacks('pre' + event, what=what, **kwargs)
        dml('INSERT INTO work (what) VALUES (%s)', what)
        koji.plugin.run_callbacks('post' + event, what=what, **kwargs)
        if fail:
            raise koji.GenericError('failed after its callbacks')
        return what
    return method
