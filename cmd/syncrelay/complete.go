package main

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// The command completion, which prints a script for a shell, is cobra's own; what
// follows tells it what a flag's value can be.

// completeRoles completes the flag --role with the roles of the contract. There
// may be others.
func completeRoles(cmd *cobra.Command) {
	mustMark(cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{
		cobra.CompletionWithDesc("admin", "staff: sees what concerns any cadet"),
		cobra.CompletionWithDesc("training_staff", "staff: sees what concerns any cadet"),
		cobra.CompletionWithDesc("cadet", "sees what concerns itself, with --cadet"),
	}, cobra.ShellCompDirectiveNoFileComp)))
}

// completeFlags keeps a shell from proposing files where none can stand: as an
// argument, and as the value of a flag of which nothing else is known.
func completeFlags(root *cobra.Command) {
	for _, cmd := range root.Commands() {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			_, known := cmd.GetFlagCompletionFunc(f.Name)
			if !known && len(f.Annotations) == 0 && f.Value.Type() != "bool" {
				mustMark(cmd.RegisterFlagCompletionFunc(f.Name, cobra.NoFileCompletions))
			}
		})
	}
}

// mustMark fails where a flag is named that the command does not have, which is a
// mistake in this program that no user can make.
func mustMark(err error) {
	if err != nil {
		panic(err)
	}
}
