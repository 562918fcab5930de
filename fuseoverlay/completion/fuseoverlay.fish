# Completion of fuseoverlay in fish: asks the program, which knows its options and images.
function __fuseoverlay_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l lines (command $words[1] __complete $words[2..] "$current" 2>/dev/null)
    set -l kind $lines[1]
    set -e lines[1]
    if set -q lines[1]
        printf '%s\n' $lines
    end
    # In --upper=DIR the option belongs to the word.
    set -l option (string match -r -- '^-[^=]*=' "$current")
    set -l value (string replace -r -- '^-[^=]*=' '' "$current")
    set -l found
    switch "$kind"
        case files
            set found (__fish_complete_path "$value")
        case directories
            set found (__fish_complete_directories "$value" '')
    end
    if set -q found[1]
        printf '%s\n' "$option"$found
    end
end
complete -c fuseoverlay -f -a '(__fuseoverlay_complete)'
