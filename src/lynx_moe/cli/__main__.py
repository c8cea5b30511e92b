from lynx_moe.cli import main

main()
