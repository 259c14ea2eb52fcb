from selfdistill.cli import main

main()
