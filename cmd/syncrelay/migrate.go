package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/syncrelay/syncrelay/schema"
)

func newMigrate(s streams) *cobra.Command {
	var config string
	var demo bool
	cmd := &cobra.Command{
		Use: "migrate", Short: "Creates or upgrades the schema; adopts an existing sync_events table", Args: noArguments,
		Long: `Creates the table sync_events, or adopts the one that is there, and everything
around it: the relay's own tables, the writer functions, roles, grants and the
publication. Run it as the database's owner. It is safe to run again.

A large table is adopted without being rewritten. What takes long is told every few
seconds, and who is in the way.`,
		Example: `  SYNCRELAY_DATABASE_URL=postgres://owner@db/grades syncrelay migrate`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			settings, err := loadSettings(s, config, "database.url")
			if err != nil {
				return err
			}
			o := schema.Options{
				Publication: settings.Database.Publication,
				Progress:    func(p schema.Progress) { fmt.Fprintln(s.err, p) },
			}
			report, err := schema.Migrate(cmd.Context(), settings.Database.URL.Reveal(), o)
			if err == nil && demo {
				var more schema.Report
				more, err = schema.MigrateDemo(cmd.Context(), settings.Database.URL.Reveal(), o)
				report.Applied = append(report.Applied, more.Applied...)
			}
			for _, file := range report.Applied {
				fmt.Fprintln(s.out, "applied", file)
			}
			for _, warning := range report.Warnings {
				fmt.Fprintln(s.err, "warning:", warning)
			}
			if err != nil {
				return fmt.Errorf("migrate: %w", err)
			}
			_, err = fmt.Fprintln(s.out, "the schema is up to date")
			return err
		},
	}
	addConfigFlag(cmd, &config)
	cmd.Flags().BoolVar(&demo, "demo", false, "add the demo grading tables, in schema demo")
	return cmd
}
