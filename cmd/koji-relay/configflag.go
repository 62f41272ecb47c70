package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"koji-relay/config"
)

// addConfigFlag gives cmd the --config flag that every command with a configuration shares.
func addConfigFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("config", config.DefaultPath, "configuration `file` (protonmsg.conf)")
}

// loadConfig reads the configuration for commands that need its values only. Any error is a usageError: one
// line for each problem.
func loadConfig(path string) (*config.Config, error) {
	cfg, err := config.Load(path)
	if err != nil {
		return nil, usageError{configError(err)}
	}
	return cfg, nil
}

// loadVerifiedConfig reads the configuration and looks at the files it names: what serve starts with, and
// what check checks. When only those files are at fault, the configuration is returned beside the error.
func loadVerifiedConfig(path string) (*config.Config, error) {
	cfg, err := loadConfig(path)
	if err != nil {
		return nil, err
	}
	if err := cfg.Verify(); err != nil {
		return cfg, usageError{configError(err)}
	}
	return cfg, nil
}

// configError puts a heading over a list of problems.
func configError(err error) error {
	var problems *config.Error
	if !errors.As(err, &problems) {
		return err
	}
	return fmt.Errorf("the configuration is not usable:\n%w", problems)
}
