import { Badge, Box, Grid, Group, Progress, ScrollArea, Stack, Table, Text, Title } from '@mantine/core'
import { IconCpu } from '@tabler/icons-react'
import { useQuery } from '@tanstack/react-query'
import { ui, type TrainingJob } from '../api'
import { ago, duration, headline, instant, number, seconds } from '../format'
import { useNow } from '../live'
import { Command, Empty, Fact, PageTitle, Problem, Waiting } from '../Parts'
import { link } from '../router'
import { StateBadge, isActive } from '../State'

const FIRST_JOB = `pip install kubeflow
python - <<'END'
from kubeflow.trainer import CustomTrainer, TrainerClient

def train():
    import os, torch.distributed as dist
    dist.init_process_group("gloo")
    print("process", os.environ["RANK"], "of", dist.get_world_size())

name = TrainerClient().train(runtime="torch-distributed", trainer=CustomTrainer(func=train, num_nodes=2))
print("".join(TrainerClient().get_job_logs(name, follow=True)))
END`

function useTraining() {
  return useQuery({ queryKey: ['training'], queryFn: ui.training, refetchInterval: 3000 })
}

function readyPods(job: TrainingJob): string {
  return `${job.pods.filter((pod) => pod.ready || pod.phase === 'Succeeded').length}/${job.pods.length}`
}

function JobProgress({ job }: { job: TrainingJob }) {
  if (job.progress === null) return <Text size="sm" c="dimmed">–</Text>
  return (
    <Group gap={8} wrap="nowrap">
      <Progress value={job.progress} w={90} aria-label={`${job.progress} %`} />
      <Text size="sm">{job.progress} %</Text>
    </Group>
  )
}

/** Every training job, whatever its kind. */
export function Training() {
  const training = useTraining()
  const rows = training.data?.jobs
  const now = useNow(rows?.some((row) => isActive(row.state)) ?? false)
  return (
    <>
      <PageTitle>Training</PageTitle>
      {training.error && <Problem error={training.error} />}
      {training.isPending && <Waiting />}
      {rows && rows.length === 0 && (
        <Empty icon={<IconCpu size={36} stroke={1.3} />} title="Nothing has been trained yet" command={FIRST_JOB}>
          Declare a TrainJob, or hand a Python function to the SDK: its processes start together and find each other.
        </Empty>
      )}
      {rows && rows.length > 0 && (
        <ScrollArea className="surface">
          <Table verticalSpacing={9} horizontalSpacing="md" highlightOnHover miw={820} data-testid="training">
            <Table.Thead>
              <Table.Tr>
                <Table.Th>Job</Table.Th><Table.Th w={156}>State</Table.Th><Table.Th w={190}>Runtime</Table.Th><Table.Th w={90}>Pods</Table.Th><Table.Th w={170}>Progress</Table.Th><Table.Th w={110}>Duration</Table.Th><Table.Th w={120}>Created</Table.Th>
              </Table.Tr>
            </Table.Thead>
            <Table.Tbody>
              {rows.map((row) => (
                <Table.Tr key={`${row.kind}/${row.namespace}/${row.name}`} className="row" onClick={() => (window.location.hash = link.job(row.kind, row.namespace, row.name))}>
                  <Table.Td>
                    <a href={link.job(row.kind, row.namespace, row.name)}>{row.name}</a>
                    <Text size="xs" c={row.state === 'FAILED' ? 'red' : 'dimmed'} lineClamp={1}>{row.state === 'FAILED' && row.message ? headline(row.message) : row.namespace}</Text>
                  </Table.Td>
                  <Table.Td><StateBadge state={row.state} /></Table.Td>
                  <Table.Td>{row.runtime || row.kind}</Table.Td>
                  <Table.Td>{readyPods(row)}</Table.Td>
                  <Table.Td><JobProgress job={row} /></Table.Td>
                  <Table.Td>{seconds(row.started_at, row.ended_at, now)}</Table.Td>
                  <Table.Td><Text size="sm" c="dimmed">{ago(instant(row.created_at))}</Text></Table.Td>
                </Table.Tr>
              ))}
            </Table.Tbody>
          </Table>
        </ScrollArea>
      )}
    </>
  )
}

export function JobPage({ kind, namespace, name }: { kind: string; namespace: string; name: string }) {
  const training = useTraining()
  const job = training.data?.jobs.find((row) => row.kind === kind && row.namespace === namespace && row.name === name)
  const now = useNow(job ? isActive(job.state) : false)
  if (training.error) return <Problem error={training.error} />
  if (training.isPending) return <Waiting />
  if (!job) {
    return <Empty title="There is no such job" command={`kubectl get ${kind.toLowerCase()} -n ${namespace}`}>{kind} {namespace}/{name} does not exist (any more).</Empty>
  }
  return (
    <>
      <PageTitle above={<><a className="plain" href="#/training">Training</a> / {namespace}</>} aside={<StateBadge state={job.state} />}>{name}</PageTitle>
      {job.message && <Box mb="md"><Problem error={new Error(job.message)} title={job.state === 'FAILED' ? 'Why it failed' : 'Why it waits'} /></Box>}
      <Grid gap="lg">
        <Grid.Col span={{ base: 12, lg: 7 }}>
          <Stack className="surface" p="md" gap="sm">
            <Title order={2} fz={17}>Processes</Title>
            {job.pods.length === 0 && <Text size="sm" c="dimmed">It has no Pods {job.ended_at ? 'any more' : 'yet'}.</Text>}
            {job.pods.map((pod) => (
              <Group key={pod.name} justify="space-between" gap="sm">
                <Group gap={8}>
                  <span className="mono">{pod.name}</span>
                  <Badge size="sm" variant="light" tt="none" color={pod.phase === 'Failed' ? 'red' : pod.ready || pod.phase === 'Succeeded' ? 'green' : 'yellow'}>{pod.phase}</Badge>
                  {pod.restarts > 0 && <Text span size="xs" c="dimmed">{pod.restarts} restarts</Text>}
                </Group>
              </Group>
            ))}
            {job.pods[0] && <Fact name="What they print"><Command>{job.pods.map((pod) => `kubectl logs -n ${namespace} -f ${pod.name}`).join('\n')}</Command></Fact>}
          </Stack>
        </Grid.Col>
        <Grid.Col span={{ base: 12, lg: 5 }}>
          <Stack className="surface" p="md" gap="sm">
            <Title order={2} fz={17}>About</Title>
            <Fact name="Kind">{kind}</Fact>
            {job.runtime && <Fact name="Runtime">{job.runtime}</Fact>}
            <Fact name="Duration">{seconds(job.started_at, job.ended_at, now)}</Fact>
            <Fact name="Progress">
              <JobProgress job={job} />
              {job.left_s !== null && isActive(job.state) && <Text size="xs" c="dimmed">about {duration(job.left_s * 1000)} left</Text>}
            </Fact>
            {job.metrics.map((metric) => <Fact key={metric.name} name={metric.name}>{metric.value === null ? '–' : number(metric.value)}</Fact>)}
            <Fact name="From a terminal"><Command>{`kubectl describe ${kind.toLowerCase()} -n ${namespace} ${name}`}</Command></Fact>
          </Stack>
        </Grid.Col>
      </Grid>
    </>
  )
}
