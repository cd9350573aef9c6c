import { Alert, Anchor, Box, Button, Code, Group, Stack, Tabs, Text } from '@mantine/core'
import { IconAlertCircle, IconCopy, IconPlayerStop, IconRefresh } from '@tabler/icons-react'
import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query'
import { useCallback, useMemo, useState } from 'react'
import { kfp, type RunMessage, type TaskView } from '../api'
import { ago, between, headline, instant } from '../format'
import Graph from '../graph/Graph'
import { useLiveRun, useNow } from '../live'
import { Empty, Fact, PageTitle, Problem, Waiting } from '../Parts'
import { link, setQuery, usePlace } from '../router'
import { Results } from '../run/Results'
import { StepPanel } from '../run/StepPanel'
import { Timeline } from '../run/Timeline'
import { Values } from '../run/Values'
import { StateBadge, isActive } from '../State'
import { useExperimentNames } from './Runs'

/** The document of a run: its own, or that of the pipeline version it was made from. */
function useSpec(run: RunMessage | undefined) {
  const reference = run?.pipeline_version_reference
  const version = useQuery({
    queryKey: ['version', reference?.pipeline_id, reference?.pipeline_version_id],
    queryFn: () => kfp.version(reference!.pipeline_id, reference!.pipeline_version_id),
    enabled: !!reference?.pipeline_version_id,
    staleTime: Infinity,
  })
  return run?.pipeline_spec ?? version.data?.pipeline_spec
}

export default function Run({ id }: { id: string }) {
  const { query } = usePlace()
  const queries = useQueryClient()
  const [again, setAgain] = useState(0)
  const loaded = useQuery({ queryKey: ['run', id], queryFn: () => kfp.run(id), staleTime: Infinity })
  const live = useLiveRun(id, again)
  const run = live.run ?? loaded.data
  const spec = useSpec(loaded.data)
  const experiments = useExperimentNames()
  const active = !!run && isActive(run.state)
  const now = useNow(active)
  const outputs = useQuery({
    queryKey: ['run-outputs', id, live.ended],
    queryFn: () => kfp.tasks(id),
    enabled: live.ended,
  })
  const change = useMutation({
    mutationFn: (verb: 'terminate' | 'retry') => kfp[verb](id),
    onSuccess: () => {
      setAgain((count) => count + 1)
      void queries.invalidateQueries({ queryKey: ['runs'] })
    },
  })

  const clone = useMutation({
    mutationFn: kfp.clone,
    onSuccess: (made) => {
      void queries.invalidateQueries({ queryKey: ['runs'] })
      window.location.hash = link.run(made.run_id)
    },
  })

  const tab = query.get('tab') ?? 'graph'
  const step = query.get('step') ?? undefined
  const select = useCallback((path: string | undefined) => setQuery({ step: path }), [])
  const task = live.tasks.find((item) => item.path === step)
  const failed = useMemo(() => firstFailure(live.tasks), [live.tasks])

  if (loaded.error) {
    return <Empty title="This run cannot be shown">{loaded.error.message}</Empty>
  }
  if (!run) return <Waiting />
  return (
    <Stack gap={0} h="calc(100vh - 52px - 2 * var(--mantine-spacing-lg))" mih={560}>
      <PageTitle
        above={<><a className="plain" href="#/runs">Runs</a> / <a className="plain" href={link.experiment(run.experiment_id)}>{experiments.get(run.experiment_id) ?? 'Experiment'}</a></>}
        aside={
          <>
            <Text size="sm" c="dimmed" mr={4} style={{ fontVariantNumeric: 'tabular-nums' }}>
              {between(run.created_at, run.finished_at, now)} · started {ago(instant(run.created_at), now)}
            </Text>
            <StateBadge state={run.state} />
            {active && (
              <Button size="xs" variant="default" leftSection={<IconPlayerStop size={14} />} loading={change.isPending} onClick={() => change.mutate('terminate')}>Stop</Button>
            )}
            {(run.state === 'FAILED' || run.state === 'CANCELED') && (
              <Button size="xs" variant="default" leftSection={<IconRefresh size={14} />} loading={change.isPending} onClick={() => change.mutate('retry')}>Retry</Button>
            )}
            {!active && loaded.data && (
              <Button size="xs" variant="default" leftSection={<IconCopy size={14} />} loading={clone.isPending} onClick={() => clone.mutate(loaded.data)}>Clone</Button>
            )}
          </>
        }
      >
        {run.display_name}
      </PageTitle>
      {(change.error ?? clone.error) && <Problem error={(change.error ?? clone.error)!} />}
      {run.state === 'FAILED' && failed && (
        <Alert color="red" variant="light" mb="sm" py="xs" icon={<IconAlertCircle size={18} />} title={`Step ${failed.display_name} failed`}>
          <Group justify="space-between" wrap="nowrap" gap="md">
            <Text size="sm" className="mono" lineClamp={2}>{headline(failed.error?.message ?? '')}</Text>
            <Anchor component="button" size="sm" style={{ whiteSpace: 'nowrap' }} onClick={() => setQuery({ step: failed.path, tab: undefined })}>Show the step</Anchor>
          </Group>
        </Alert>
      )}
      {run.state === 'FAILED' && !failed && run.error?.message && <Box mb="sm"><Problem error={new Error(run.error.message)} title="Why it failed" /></Box>}
      <Tabs value={tab} onChange={(value) => setQuery({ tab: value === 'graph' ? undefined : (value ?? undefined) })} keepMounted={false} variant="default" display="flex" style={{ flexDirection: 'column', flex: 1, minHeight: 0 }}>
        <Tabs.List mb="sm">
          <Tabs.Tab value="graph">Graph</Tabs.Tab>
          <Tabs.Tab value="timeline">Timeline</Tabs.Tab>
          <Tabs.Tab value="results">Results</Tabs.Tab>
          <Tabs.Tab value="details">Details</Tabs.Tab>
        </Tabs.List>
        <Box style={{ flex: 1, minHeight: 0, display: 'flex', gap: 16 }}>
          <Box style={{ flex: 1, minWidth: 0, minHeight: 0, overflow: 'auto' }} pos="relative" className={tab === 'graph' ? 'surface' : undefined}>
            <Tabs.Panel value="graph">
              {spec ? <Graph spec={spec} tasks={live.tasks} selected={step} onSelect={select} /> : <Box p="md"><Waiting /></Box>}
            </Tabs.Panel>
            <Tabs.Panel value="timeline"><Timeline tasks={live.tasks} onSelect={select} selected={step} /></Tabs.Panel>
            <Tabs.Panel value="results"><Results tasks={live.tasks} /></Tabs.Panel>
            <Tabs.Panel value="details">
              <Stack className="surface" p="md" gap="md" maw={860}>
                <Fact name="Parameters"><Values values={run.runtime_config?.parameters ?? rootInputs(live.tasks)} empty="This run has no parameters." /></Fact>
                <Fact name="Outputs"><Values values={outputs.data?.outputs ?? {}} empty={active ? 'Shown when the run is over.' : 'This pipeline has no outputs.'} /></Fact>
                <Fact name="Pipeline">
                  {loaded.data?.pipeline_version_reference
                    ? <Anchor size="sm" href={link.pipeline(loaded.data.pipeline_version_reference.pipeline_id, loaded.data.pipeline_version_reference.pipeline_version_id)}>{spec?.pipelineInfo?.name ?? 'pipeline'}</Anchor>
                    : (spec?.pipelineInfo?.name ?? '–')}
                  {spec?.pipelineInfo?.description && <Text size="sm" c="dimmed">{spec.pipelineInfo.description}</Text>}
                </Fact>
                <Fact name="Run id"><Code>{run.run_id}</Code></Fact>
              </Stack>
            </Tabs.Panel>
          </Box>
          {step && (tab === 'graph' || tab === 'timeline') && <StepPanel key={task?.task_id ?? step} run={id} path={step} task={task} onClose={() => select(undefined)} />}
        </Box>
      </Tabs>
    </Stack>
  )
}

/** The deepest step that failed: its groups failed because of it. */
function firstFailure(tasks: TaskView[]): TaskView | undefined {
  return tasks.find((task) => task.own_state === 'FAILED' && task.kind === 'container') ?? tasks.findLast((task) => task.own_state === 'FAILED' && task.path !== 'root')
}

function rootInputs(tasks: TaskView[]): Record<string, unknown> {
  return tasks.find((task) => task.path === 'root')?.input_parameters ?? {}
}

