from albef.cli import main

main()
