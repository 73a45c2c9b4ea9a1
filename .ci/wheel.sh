# What the wheel has to bring along: commands of an installed esckit, in an empty folder.
esckit --version
esckit --help > help.txt
esckit recipes check
test "$(esckit recipes list | wc -l)" -gt 60
esckit strategies list
esckit prompts list
esckit data inspect sample:esconv
esckit data inspect sample:extes
esckit simulate smoke/simulate_scripted --quiet
esckit search smoke/search_scripted --quiet
esckit evaluate smoke/evaluate_scripted --quiet --set 'suites=[strategy,response,safety]'
esckit report runs/simulate-smoke-scripted
esckit evaluate practice/evaluate --quiet --set data.path=world:default/60
esckit doctor --json > doctor.json || cat doctor.json
python -c "import esckit, pathlib; assert 'site-packages' in esckit.__file__, esckit.__file__"
echo "The wheel is whole."
