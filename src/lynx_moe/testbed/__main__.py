from lynx_moe.testbed.cli import app

app()
