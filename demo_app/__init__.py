"""A small FastAPI service that records visits, written correctly in many ways and leaking in as many.

`demo_app.correct` and `demo_app.leaky` hold one application per module; each has a
`create_app(dsn)`. A leaky application and its correct twin differ by the one line that
people forget. `python -m demo_app.run_demo` shows what pytest-pgleak makes of them.
"""
