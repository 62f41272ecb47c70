package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"koji-relay/internal/inspect"
)

const (
	// completionTime bounds how long a shell waits for a completion.
	completionTime = 2 * time.Second
	// completedIDs bounds what a shell is offered.
	completedIDs = 100
)

// completeIDs offers the ids of box, the oldest, each with its topic.
func completeIDs(box inspect.Box) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		var ids []string
		enough := errors.New("enough")
		err := complete(cmd, func(ctx context.Context, q *openedQueue) error {
			return q.List(ctx, box, inspect.ListOptions{Limit: completedIDs}, func(it inspect.Item) error {
				if ids = append(ids, it.MessageID+"\t"+it.Address); len(ids) == completedIDs {
					return enough
				}
				return nil
			})
		})
		if err != nil && !errors.Is(err, enough) {
			return nil, cobra.ShellCompDirectiveError
		}
		return ids, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeTopics offers for --address the topics that box has messages of.
func completeTopics(cmd *cobra.Command, box inspect.Box) {
	offer := func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		topics, err := topicsOf(cmd, box)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return topics, cobra.ShellCompDirectiveNoFileComp
	}
	_ = cmd.RegisterFlagCompletionFunc("address", offer) // fails for an unknown flag only
}

func topicsOf(cmd *cobra.Command, box inspect.Box) (topics []string, err error) {
	err = complete(cmd, func(ctx context.Context, q *openedQueue) error {
		if box == inspect.QueueBox {
			s, err := q.status(ctx)
			for _, t := range s.Queue.ByTopic {
				topics = append(topics, t.Address)
			}
			return err
		}
		seen := map[string]bool{"": true}
		return q.List(ctx, box, inspect.ListOptions{}, func(it inspect.Item) error {
			if !seen[it.Address] {
				seen[it.Address] = true
				topics = append(topics, it.Address)
			}
			return nil
		})
	})
	return topics, err
}

// complete opens the queue for a completion, quietly and for a short time.
func complete(cmd *cobra.Command, do func(context.Context, *openedQueue) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), completionTime)
	defer cancel()
	path, err := cmd.Flags().GetString("config")
	if err != nil {
		return err
	}
	q, err := openQueue(ctx, path)
	if err != nil {
		return err
	}
	defer q.release()
	return do(ctx, q)
}
