from doge_export.cli import main

main(prog_name="doge-export")
